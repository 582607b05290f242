"""The child: a process that executes instructions on the chunks it holds."""
