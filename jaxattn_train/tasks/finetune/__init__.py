"""Fine-tuning of pretrained text encoders."""
