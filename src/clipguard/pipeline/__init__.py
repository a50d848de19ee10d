"""The stages of a defence in order: `config`, `stages`, `scanning`, `repair`, `defender`, `summary`."""
