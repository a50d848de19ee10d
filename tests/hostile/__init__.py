"""A catalogue of hostile inputs: what each reader must refuse, list or stand."""
