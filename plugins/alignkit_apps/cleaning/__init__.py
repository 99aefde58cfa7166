"""What is wrong with rows of data: the rules of `alignkit data` and of the step `clean`. A room that both share."""
