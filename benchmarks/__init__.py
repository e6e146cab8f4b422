"""What pgembed costs and how fast it is: `make bench`. Nothing here is a test with a clock."""
