"""Products with weights straight from their blocks: plan, layouts, kernels a form."""
