"""Many cards and machines: items spread over workers that keep their models loaded. The only folder that knows Ray."""
