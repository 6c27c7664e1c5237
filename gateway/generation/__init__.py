"""The pipeline that generates and edits images, and its steps. The REST and MCP fronts import it;
it imports the packages below and no front.
"""
