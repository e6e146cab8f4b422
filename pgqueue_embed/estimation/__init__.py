"""What a pipeline will take, told from a sample of its source before anything is made."""
