"""Who can be asked: names, weights and endpoints, all behind one `ChatModel`."""
