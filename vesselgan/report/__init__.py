"""Tables, figures and the page, from results files alone."""
