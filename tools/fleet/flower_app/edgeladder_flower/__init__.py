"""The Flower app: edgeladder's own ClientApp and ServerApp."""
