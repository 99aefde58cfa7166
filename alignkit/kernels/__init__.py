"""The only code that knows about processors. `ALIGNKIT_KERNELS=torch` switches all of it to plain torch."""
