"""What is sold: models, drawing, stores, and the faces that customers see."""
