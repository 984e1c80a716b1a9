"""What a step would need and cost on machines that are not here, from their own compilers."""
