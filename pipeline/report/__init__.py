"""Words and pixels: tables, diagnostics, figures, playbacks and the comparison report. The only room that plots."""
