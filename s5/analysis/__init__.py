"""One network looked at: layers, parameters, receptive fields, figures, statistics."""
