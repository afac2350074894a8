"""Recipes for training, and what runs them."""
