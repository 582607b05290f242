"""Pictures that are learnt from in patches, for super-resolution."""
