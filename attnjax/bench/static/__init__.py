"""What compilers say of kernels for devices that are not here."""
