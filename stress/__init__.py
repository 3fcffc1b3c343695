"""nimue under stress: ``python -m stress`` lists what there is."""
