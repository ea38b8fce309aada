"""What is trained and shrunk: build, cut, choose what trains, adapt, quantise, export."""
