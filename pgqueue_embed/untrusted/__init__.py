"""What others have written: texts and files, never taken as they come."""
