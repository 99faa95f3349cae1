"""Simulator of weather and air quality over real terrain, for demonstrations and tests."""
