"""Reports on a training run: one HTML file, and the same pictures as matplotlib figures."""

from udmlss.report.figures import contact_sheet, plot_history, plot_map, plot_neighbors
from udmlss.report.html import write_report

__all__ = ["contact_sheet", "plot_history", "plot_map", "plot_neighbors", "write_report"]
