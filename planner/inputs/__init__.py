"""What the user gives: model, topology, workload, deployment; read strictly, told in full."""
