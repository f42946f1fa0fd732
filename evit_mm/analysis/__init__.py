"""The analyses of the EfficientViT paper (section 2), for any model."""
