"""The bundled MeanFlow trainer: few-step text-to-image with any encoder as condition."""
