"""Language modelling: documents, packing, models that continue a text, and what counts n-grams."""
