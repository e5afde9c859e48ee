"""spafit-bench: which way of fine-tuning this encoder is best on GLUE, and at what cost?"""

__version__ = "0.1.0"
