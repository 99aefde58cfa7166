"""The step `trl`: a trainer of TRL as a stage of a recipe."""
