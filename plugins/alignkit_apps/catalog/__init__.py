"""What is installed and what comes with alignkit: `plugins`, and the schema of recipes."""
