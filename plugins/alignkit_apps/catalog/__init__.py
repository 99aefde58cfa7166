"""What is installed and what comes with alignkit: `plugins`, `recipes`, `schema` and `results`."""
