"""YAML -> Recipe: read, expanded, validated and resolved before anything heavy is imported."""
