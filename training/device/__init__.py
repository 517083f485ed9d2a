"""What a device needs: collectives, layers for a CPU, batch norm over ranks."""
