"""What dynamic mode and edits cost: `make bench` runs all of it, each file says what it measures."""
