"""Students: build or cut them, choose what trains, add adapters, quantise and export."""
