"""What any other folder may use: files, text, the machine."""
