"""Figures and tables of numbers for reports, shared by all pages."""
