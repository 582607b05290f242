"""Pictures of any sizes that have a class, and how they become images of one size."""
