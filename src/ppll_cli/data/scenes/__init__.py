"""Pictures of any sizes and the boxes of their objects, for object detection."""
