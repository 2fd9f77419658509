"""What `helpers.fit` is made of: data, recipe, optimizers, device, checkpoint."""
