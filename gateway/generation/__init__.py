"""The one pipeline that makes or edits images, and its steps. Fronts call it; it calls the
packages below and no front.
"""
