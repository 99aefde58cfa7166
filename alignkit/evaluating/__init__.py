"""The command `alignkit evaluate`: policies and rewards named on the command line become a recipe with one step."""
