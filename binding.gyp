{
  # A thin delegate: CMakeLists.txt is the truth. `npx node-gyp rebuild` ends in the same build as `npm run build`.
  "targets": [
    {
      "target_name": "caravan",
      "type": "none",
      "actions": [
        {
          "action_name": "cmake",
          "inputs": [],
          "outputs": ["<(PRODUCT_DIR)/always-out-of-date"],
          "action": ["node", "scripts/build.mjs", "--from-gyp"]
        }
      ]
    }
  ]
}
