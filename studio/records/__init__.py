"""The words both sides speak: frozen records that cross the pipe and lie in files as JSON.

No behaviour beyond small arithmetic lives here, and nothing here imports the engine or Qt.
"""
