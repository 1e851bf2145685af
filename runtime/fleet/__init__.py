"""Many clips, each edited on its own: one after another in this process, or spread over a Ray cluster."""

from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.fleet.edit_items import edit_many
from fairy.runtime.fleet.fleet_options import FleetOptions
from fairy.runtime.fleet.items import WorkItem, items_of_folder
from fairy.runtime.fleet.results import ClipResult, FleetReport

__all__ = ["ClipResult", "EditorSetup", "FleetOptions", "FleetReport", "WorkItem", "edit_many", "items_of_folder"]
