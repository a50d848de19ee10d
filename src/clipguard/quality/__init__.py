"""Data quality beside security: duplicates, label errors, odd images. Nothing here is called an attack."""
