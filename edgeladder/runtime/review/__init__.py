"""What cached activations say of pictures and labels: for a person to decide."""
