"""Procedural anatomy: vessel trees and brain masks that are nobody's, from a seed and published numbers."""
