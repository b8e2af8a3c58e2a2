"""What is frozen (the backbone) and what is trained (the ladder), as torch modules."""
