"""Pictures of predictions: classes beside the image, boxes on it, masks over it; and of metrics."""
