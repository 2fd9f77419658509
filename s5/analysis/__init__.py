"""One network looked at: layers, parameters, receptive field, figures, statistics, and what notebooks show."""
